"""What stands on the page of `sda report`: facts, plots, pictures, and the template. `sda.page` puts them together."""
