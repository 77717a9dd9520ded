"""`switchyard overlap`: a knob off and on beside each other, and how much it hides."""
