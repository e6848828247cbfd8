"""`retroflow bench`: retrievers on vectors, judged by recall, speed, memory, and by the loss of a model."""
