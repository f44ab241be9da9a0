"""QEMU command lines as other programs write them: what `adopt` will meet in the wild (shortened, invented values)."""

from __future__ import annotations

import shlex
from typing import Final

LIBVIRT: Final = shlex.split(
    r"""/usr/bin/qemu-system-x86_64 -name guest=web,debug-threads=on -S
    -object '{"qom-type":"secret","id":"masterKey0","format":"raw","file":"/var/lib/libvirt/qemu/web/key.aes"}'
    -blockdev '{"driver":"file","filename":"/usr/share/OVMF/CODE.fd","node-name":"libvirt-pflash0-storage"}'
    -blockdev '{"node-name":"libvirt-pflash0-format","read-only":true,"driver":"raw","file":"libvirt-pflash0-storage"}'
    -blockdev '{"driver":"file","filename":"/var/lib/libvirt/web_VARS.fd","node-name":"libvirt-pflash1-storage"}'
    -machine pc-q35-7.2,usb=off,memory-backend=pc.ram,pflash0=libvirt-pflash0-format,pflash1=libvirt-pflash1-storage
    -accel kvm -cpu Skylake-Server-IBRS,ss=on,vmx=on,hypervisor=on -m size=2097152k
    -object '{"qom-type":"memory-backend-ram","id":"pc.ram","size":2147483648}' -overcommit mem-lock=off
    -smp 2,sockets=2,cores=1,threads=1 -uuid 0b1fbd3d-7e0a-4c39-8e1f-5a6f6a9f3f10 -no-user-config -nodefaults
    -chardev socket,id=charmonitor,path=/var/lib/libvirt/qemu/domain-1-web/monitor.sock,server=on,wait=off
    -mon chardev=charmonitor,id=monitor,mode=control -rtc base=utc,driftfix=slew -no-shutdown -boot strict=on
    -device '{"driver":"pcie-root-port","port":16,"chassis":1,"id":"pci.1","bus":"pcie.0","multifunction":true,"addr":"0x2"}'
    -blockdev '{"driver":"file","filename":"/srv/images/base.qcow2","node-name":"libvirt-2-storage","read-only":true}'
    -blockdev '{"node-name":"libvirt-2-format","read-only":true,"driver":"qcow2","file":"libvirt-2-storage","backing":null}'
    -blockdev '{"driver":"file","filename":"/srv/images/web.qcow2","node-name":"libvirt-1-storage","cache":{"direct":true}}'
    -blockdev '{"node-name":"libvirt-1-format","driver":"qcow2","file":"libvirt-1-storage","backing":"libvirt-2-format"}'
    -device '{"driver":"virtio-blk-pci","bus":"pci.1","addr":"0x0","drive":"libvirt-1-format","id":"virtio-disk0"}'
    -netdev '{"type":"tap","fd":"24","vhost":true,"vhostfd":"26","id":"hostnet0"}'
    -device '{"driver":"virtio-net-pci","netdev":"hostnet0","id":"net0","mac":"52:54:00:aa:bb:cc","bus":"pci.1"}'
    -chardev pty,id=charserial0 -device '{"driver":"isa-serial","chardev":"charserial0","id":"serial0","index":0}'
    -chardev socket,id=charchannel0,path=/var/lib/libvirt/qemu/channel/web.agent,server=on,wait=off
    -audiodev '{"id":"audio1","driver":"none"}' -vnc 127.0.0.1:0,audiodev=audio1
    -sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny -msg timestamp=on"""
)

PROXMOX: Final = shlex.split(
    r"""/usr/bin/kvm -id 100 -name 'web,debug-threads=on' -no-shutdown
    -chardev 'socket,id=qmp,path=/var/run/qemu-server/100.qmp,server=on,wait=off' -mon 'chardev=qmp,mode=control'
    -chardev 'socket,id=qmp-event,path=/var/run/qmeventd.sock,reconnect=5' -mon 'chardev=qmp-event,mode=control'
    -pidfile /var/run/qemu-server/100.pid -daemonize -smbios 'type=1,uuid=2b1fbd3d-7e0a-4c39-8e1f-5a6f6a9f3f10'
    -smp '4,sockets=1,cores=4,maxcpus=4' -nodefaults
    -boot 'menu=on,strict=on,reboot-timeout=1000,splash=/usr/share/qemu-server/bootsplash.jpg'
    -vnc 'unix:/var/run/qemu-server/100.vnc,password=on' -cpu 'kvm64,enforce,+kvm_pv_eoi,+lahf_lm' -m 2048
    -device 'piix3-usb-uhci,id=uhci,bus=pci.0,addr=0x1.0x2' -iscsi 'initiator-name=iqn.1993-08.org.debian:01:aabb'
    -drive 'if=none,id=drive-ide2,media=cdrom,aio=io_uring' -device 'ide-cd,bus=ide.1,unit=0,drive=drive-ide2,id=ide2'
    -device 'virtio-scsi-pci,id=scsihw0,bus=pci.0,addr=0x5'
    -drive 'file=/dev/pve/vm-100-disk-0,if=none,id=drive-scsi0,format=raw,cache=none,aio=io_uring,detect-zeroes=on'
    -device 'scsi-hd,bus=scsihw0.0,channel=0,scsi-id=0,lun=0,drive=drive-scsi0,id=scsi0,bootindex=100'
    -netdev 'type=tap,id=net0,ifname=tap100i0,script=/var/lib/qemu-server/pve-bridge,downscript=no,vhost=on'
    -device 'virtio-net-pci,mac=AA:BB:CC:DD:EE:FF,netdev=net0,bus=pci.0,addr=0x12,id=net0' -machine 'type=pc+pve0'"""
)

BY_HAND: Final = shlex.split(
    r"""qemu-system-x86_64 --enable-kvm -M q35,accel=kvm:tcg -m 1.5G,slots=2,maxmem=4G -smp cores=2,threads=2
    -hda /srv/a/web.img -cdrom /srv/a/install.iso -drive if=pflash,format=raw,readonly=on,file=/usr/share/code.fd
    -kernel /srv/a/vmlinuz -initrd /srv/a/initrd.img -append '-x root=/dev/vda path=/srv/a/in-guest'
    -qmp unix:/run/x/web/qmp.sock,server,nowait -monitor telnet:127.0.0.2:4444,server,nowait -serial file:/srv/a/serial,log
    -nic user,hostfwd=tcp:127.0.0.2:2222-:22,model=e1000 -vnc 127.0.0.2:1 -L /srv/a/roms -runas nobody /srv/a/extra.img"""
)

ALL: Final = {"libvirt": LIBVIRT, "proxmox": PROXMOX, "by hand": BY_HAND}
