"""What everything rests on: interfaces, the Step, the training loop, evaluation. Imports torch, pluggy, stdlib."""
