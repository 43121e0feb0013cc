"""Independent answers to compare tracetool with; nothing here imports it."""
