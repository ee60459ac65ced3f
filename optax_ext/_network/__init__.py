"""Facts about a model's layers, and rules that turn these facts into step sizes."""
