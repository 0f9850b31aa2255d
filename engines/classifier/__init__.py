"""The image classifier served beside the language models."""
