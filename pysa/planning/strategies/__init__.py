"""Ways to a plan: PoD's blocks, SA's spans, StreamingLLM, and the search by measured cost.

Each takes what was measured and gives a pysa.Plan; pysa/planning/gate.py then measures the plan itself.
"""
