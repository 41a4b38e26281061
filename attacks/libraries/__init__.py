"""The attacks of foolbox and torchattacks, with their known faults contained."""
