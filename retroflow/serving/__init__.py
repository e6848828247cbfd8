"""A model behind HTTP: an OpenAI-compatible server and its page."""
