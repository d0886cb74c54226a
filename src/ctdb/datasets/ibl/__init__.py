"""Recordings of the International Brain Laboratory: fetched to a local cache by a manifest, prepared from there."""
