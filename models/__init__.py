"""The GPT model and its components."""
