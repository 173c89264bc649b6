"""A trained model with its tokenizer: sampling, inpainting, folders of samples."""
