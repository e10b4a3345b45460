from finesight.cli import main

raise SystemExit(main())
