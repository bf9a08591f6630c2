"""What an operator does to a coordinator's data as a whole: back it up, restore it. Beside the composition root."""
