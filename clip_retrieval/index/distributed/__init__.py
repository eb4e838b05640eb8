"""Building an index on the executors of a Spark cluster: train here, add and merge there."""
