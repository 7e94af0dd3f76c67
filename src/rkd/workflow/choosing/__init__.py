"""Choosing a teacher before a student is trained."""
