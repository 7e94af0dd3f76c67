"""The contract of rkd's parts, the Step and the training loop. Imports torch, pluggy and the standard library."""
