// Command psx-service lets Windows run psx-peer.exe, which stands beside it, as a service that starts and stops on demand.
package main

import (
	"log"
	"os"
	"os/exec"
	"path/filepath"

	"golang.org/x/sys/windows/svc"
)

const name = "psx-peer"

type service struct{}

// Execute runs the peer until Windows wants it to stop, or until it ends by itself. Ending the process ends its tunnels.
func (service) Execute(_ []string, requests <-chan svc.ChangeRequest, status chan<- svc.Status) (bool, uint32) {
	status <- svc.Status{State: svc.StartPending}
	self, err := os.Executable()
	if err != nil {
		return true, 1
	}
	peer := exec.Command(filepath.Join(filepath.Dir(self), "psx-peer.exe"))
	if err := peer.Start(); err != nil {
		return true, 2
	}
	ended := make(chan error, 1)
	go func() { ended <- peer.Wait() }()
	status <- svc.Status{State: svc.Running, Accepts: svc.AcceptStop | svc.AcceptShutdown}
	for {
		select {
		case err := <-ended:
			if err != nil {
				return true, 3
			}
			return false, 0
		case request := <-requests:
			switch request.Cmd {
			case svc.Interrogate:
				status <- request.CurrentStatus
			case svc.Stop, svc.Shutdown:
				status <- svc.Status{State: svc.StopPending}
				_ = peer.Process.Kill()
				<-ended
				return false, 0
			}
		}
	}
}

func main() {
	if err := svc.Run(name, service{}); err != nil {
		log.Fatalf("psx-service is started by Windows (sc.exe start %s): %v", name, err)
	}
}
