"""Evaluation: frozen encoder features judged by the linear and knn protocols, or trained on by finetune."""
