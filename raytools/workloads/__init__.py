"""Real work that shows a cluster works. Imports the standard library only: the nodes run it."""
