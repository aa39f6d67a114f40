"""The demo: a person whom the model has never seen, learnt twice, with the plain loss and with Masked LDM."""
