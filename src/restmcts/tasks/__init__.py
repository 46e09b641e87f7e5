"""What a question is: load or make it, find the answer in a text, grade the answer."""
