"""Training: one pretraining run, the same on one worker and on many."""
