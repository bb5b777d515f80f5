"""Ways of training: one LightningModule each."""
