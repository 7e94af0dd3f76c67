"""What a net is worth on clean, attacked and corrupted images, and which doubts remain."""
