"""Neural belief reasoners and fractal classifiers, and how their subtasks are combined."""
