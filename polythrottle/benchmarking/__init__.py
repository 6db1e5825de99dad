"""`polythrottle bench optimizer`: recorded or emulated tables replayed as black boxes.

Needs numpy, and for the strategies what they need themselves; nothing here is imported before it is used.
"""
