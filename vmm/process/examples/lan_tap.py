#!/usr/bin/env python3
"""Opens a tap device with virtio-net headers and TSO in this network namespace, gives it the NIC's MAC and an address, and runs lan_tap on it.

usage: lan_tap.py PROGRAM ADDRESS/PREFIX|dhcp vni=N,mac=MAC,local=IP:PORT[,ip=ADDRESS/PREFIX][,peer=MAC@IP:PORT[@ADDRESS]]...
With "dhcp" tap0 gets no address here: ask for one with any client.
"""
import fcntl, os, struct, subprocess, sys

program, address, net = sys.argv[1:]
mac = dict(item.split("=", 1) for item in net.split(","))["mac"]
tap = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
IFF_TAP, IFF_NO_PI, IFF_VNET_HDR = 2, 0x1000, 0x4000
fcntl.ioctl(tap, 0x400454CA, struct.pack("16sH22x", b"tap0", IFF_TAP | IFF_NO_PI | IFF_VNET_HDR))  # TUNSETIFF
fcntl.ioctl(tap, 0x400454D8, struct.pack("i", 12))  # TUNSETVNETHDRSZ: virtio_net_hdr_v1
fcntl.ioctl(tap, 0x400454D0, 1 | 2 | 4)  # TUNSETOFFLOAD: CSUM, TSO4, TSO6
commands = [f"link set tap0 address {mac} mtu 1400 up"]
if address != "dhcp":
    commands.append(f"addr add {address} dev tap0")
for command in commands:
    subprocess.run(["ip", *command.split()], check=True)
os.dup2(tap, 0)
os.execv(program, [program, net])
