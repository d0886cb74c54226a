"""Recordings of the International Brain Laboratory: what is fetched, and how it becomes a dataset."""
