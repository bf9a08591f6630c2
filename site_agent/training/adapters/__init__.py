"""The adapters: which weights are trained, put on a frozen base by peft."""
