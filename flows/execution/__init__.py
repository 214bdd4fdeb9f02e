"""How a run is carried out: DVC's graph, one stage as a task, what is ended with it, and what is published after it."""
