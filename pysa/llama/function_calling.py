"""The format `chatml-function-calling`: tools for any model that knows ChatML, by telling it how to write calls.

The prompt is llama-cpp-python's. Where that one asks the model several times, one grammar here covers every answer.
"""

from __future__ import annotations

FUNCTION_CALLING = "chatml-function-calling"
MESSAGE_MARK = "message:"
CALL_MARK = "functions."

FUNCTION_CALLING_TEMPLATE = (
    "{% set calling = tools and tool_choice is not none and tool_choice != 'none' %}"
    "{% for message in messages %}{{ '<|im_start|>' ~ message.role ~ '\\n' }}"
    "{% if message.role == 'system' %}{{ message.content }}{% if calling %}"
    "{{ '\\n\\nYou have access to the following functions:\\n' }}{% for tool in tools %}"
    "{{ '\\nfunctions.' ~ tool.function.name ~ ':\\n' ~ tool.function.parameters | tojson(sort_keys=true) ~ '\\n' }}"
    "{% endfor %}{{ how_to_call }}{% endif %}{{ '<|im_end|>\\n' }}"
    "{% elif message.role == 'user' %}{{ message.content ~ '<|im_end|>\\n' }}"
    "{% elif message.role == 'assistant' %}{% if message.content %}"
    "{{ ('message:\\n' if calling else '') ~ message.content ~ '<|im_end|>\\n' }}{% endif %}"
    "{% if message.tool_calls %}{% for call in message.tool_calls %}"
    "{{ 'functions.' ~ call.function.name ~ ':\\n' ~ call.function.arguments }}{% endfor %}"
    "{{ '<|im_end|>\\n' }}{% endif %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    "{% if calling and tool_choice is mapping %}{{ 'functions.' ~ tool_choice.function.name ~ ':\\n' }}{% endif %}"
)
HOW_TO_CALL = (
    "\n\nYou can respond to users messages with either a single message or one or more function calls."
    "\n\nTo respond with a message begin the message with 'message:', use the following format:"
    "\n\nmessage:\n<message>"
    "\n\nTo respond with one or more function calls begin the message with 'functions.<function_name>:', "
    "use the following format:\n"
) + '\nfunctions.<function_name>:\n{ "arg1": "value1", "arg2": "value2" }' * 2
