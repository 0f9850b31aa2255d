"""Where models come from: local files, Hugging Face, Kaggle, OCI registries, URLs."""
