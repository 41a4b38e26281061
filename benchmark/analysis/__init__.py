"""What is made of whole runs once they are measured."""
