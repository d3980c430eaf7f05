"""Evaluation: frozen encoder features judged by linear, knn and, later, finetune protocols."""
