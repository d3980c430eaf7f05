"""Datasets: a reference becomes an index of files, and the index a pack of decoded images."""
