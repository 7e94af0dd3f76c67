"""Common corruptions of images, by family."""
