"""How the example checkpoint was made: corpus, tasks, model, training, evaluation and the choice of its plan."""
