"""Common corruptions of images, by family; what all of them cite.

References: hendrycks2019benchmarking
"""
