"""A guarded model as a service: many conversations at once, behind OpenAI's chat completions."""
