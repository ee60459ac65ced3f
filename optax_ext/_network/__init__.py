"""What an optimizer may know of the model: facts about its layers, and rules that use them."""
