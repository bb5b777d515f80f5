"""The shipped aligned model: projections over the towers of `lite0_minilm`. Made by `experiment=emoji_clip`."""
