"""`diffreg bench`: operators, a training step, a prediction, against what users have today."""
