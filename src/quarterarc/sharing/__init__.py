"""Sharing trained models: exports for other programs, model cards, and the Hugging Face hub."""
