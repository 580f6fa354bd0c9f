"""Finding a sharing plan and measuring what it costs: numpy alone, on top of pysa.Model; docs/measuring.md."""
