"""What others have signed: who says it, and what it says once verified. No secret of the manager, no TPM."""
