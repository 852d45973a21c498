"""The appliance as a VM: builder/ makes its image, host/ runs it."""
