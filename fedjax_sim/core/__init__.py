"""The theory, to be read in this order: types, client, message, aggregate, server, algorithm, execute, round."""
