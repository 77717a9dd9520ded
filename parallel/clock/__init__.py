"""Where the time of a step goes: phases that tile it, and the waits for communication inside them."""
