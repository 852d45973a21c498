"""The guest's side of a channel: /dev/tpmN, a pipe, or a TCP socket pair in front of a vTPM that lives in the manager.

Needs the standard library and manager_vm.{errors, wire, protocol, vchan} only.
"""
