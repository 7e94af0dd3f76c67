"""What a long training needs around the loop: checkpoints, divergence, metrics, caches, trials."""
