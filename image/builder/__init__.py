"""The image build: Debian packages -> erofs with a dm-verity tree, initrd, UKI. See image/README.md."""
