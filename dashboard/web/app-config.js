// Configuration of OHIF 3.13.2 for the deepcac2 dashboard. See docs/viewer.md.
// __DICOMWEB__ is replaced by the address of the DICOMweb service when the file is served.
window.PUBLIC_URL = '/viewer/';
console.time('scriptToView'); // OHIF ends this timer and expects its page to have started it

// Our segmentations: the heart as an outline, calcium filled, and first the slice with the most calcium.
const CALCIUM = '18115005'; // SNOMED CT, pathologic calcification

const deepcac2Extension = {
  id: 'deepcac2',
  onModeEnter: ({ servicesManager }) => {
    const { segmentationService } = servicesManager.services;
    segmentationService.subscribe(
      segmentationService.EVENTS.SEGMENTATION_LOADING_COMPLETE,
      ({ segmentationId, segDisplaySet }) => {
        const segments = (segDisplaySet && segDisplaySet.segMetadata && segDisplaySet.segMetadata.data) || [];
        const codeOf = (segment) => {
          const codes = segment && segment.SegmentedPropertyTypeCodeSequence;
          const code = Array.isArray(codes) ? codes[0] : codes;
          return code && code.CodeValue;
        };
        const calcium = segments.findIndex((segment) => codeOf(segment) === CALCIUM);
        if (calcium < 0) {
          return;
        }
        segments.forEach((segment, index) => {
          if (segment) {
            segmentationService.setStyle(
              { segmentationId, type: 'Labelmap', segmentIndex: index },
              index === calcium ? { fillAlpha: 0.6, outlineWidth: 1 } : { fillAlpha: 0, outlineWidth: 2 }
            );
          }
        });
        // The slice that the dashboard names, where its link says one.
        const slice = new URLSearchParams(window.location.search).get('slice');
        const named = slice && segDisplaySet.labelMapImages.flat().find(
          (image) => image.referencedImageId.includes(`/instances/${slice}/`)
        );
        if (named) {
          segDisplaySet.firstSegmentedSliceImageId = named.referencedImageId;
          return;
        }
        let most = 0;
        let largest = 0;
        for (const image of segDisplaySet.labelMapImages.flat()) {
          let counted = 0;
          let other = 0;
          for (const value of image.voxelManager.getScalarData()) {
            if (value === calcium) {
              counted += 1;
            } else if (value) {
              other += 1;
            }
          }
          if (counted > most || (most === 0 && other > largest)) {
            segDisplaySet.firstSegmentedSliceImageId = image.referencedImageId;
          }
          most = Math.max(most, counted);
          largest = Math.max(largest, other);
        }
      }
    );
  },
};

window.config = {
  // The page stands at /viewer, the name of OHIF's basic mode; its files below /viewer/.
  routerBasename: '/',
  extensions: [deepcac2Extension],
  modes: [],
  modesConfiguration: {
    '@ohif/mode-longitudinal': {
      routes: {
        0: {
          layoutInstance: {
            props: {
              rightPanelClosed: { $set: false },
              rightPanels: { $set: ['@ohif/extension-cornerstone.panelModule.panelSegmentation'] },
            },
          },
        },
      },
    },
  },
  // A study is opened from the dashboard; there is no list of studies here.
  showStudyList: false,
  showPatientInfo: 'disabled',
  investigationalUseDialog: { option: 'never' },
  // Show a segmentation without asking first.
  disableConfirmationPrompts: true,
  showWarningMessageForCrossOrigin: false,
  showCPUFallbackMessage: true,
  showLoadingIndicator: true,
  strictZSpacingForVolumeViewport: true,
  showErrorDetails: 'production',
  maxNumberOfWebWorkers: 3,
  maxNumRequests: { interaction: 32, thumbnail: 4, prefetch: 8 },
  studyPrefetcher: { enabled: false },
  whiteLabeling: {
    createLogoComponentFn: (React) =>
      React.createElement(
        'a',
        { href: '/', className: 'text-primary px-3 text-base', 'data-cy': 'back-to-dashboard' },
        '← Dashboard'
      ),
  },
  customizationService: [
    {
      'ohif.tours': { $set: [] },
      'panelSegmentation.tableMode': { $set: 'expanded' },
    },
  ],
  defaultDataSourceName: 'dicomweb',
  dataSources: [
    {
      namespace: '@ohif/extension-default.dataSourcesModule.dicomweb',
      sourceName: 'dicomweb',
      configuration: {
        friendlyName: 'deepcac2',
        name: 'dicomweb',
        qidoRoot: __DICOMWEB__,
        wadoRoot: __DICOMWEB__,
        wadoUriRoot: __DICOMWEB__,
        qidoSupportsIncludeField: false,
        supportsFuzzyMatching: false,
        supportsWildcard: true,
        supportsReject: false,
        supportsStow: false,
        imageRendering: 'wadors',
        thumbnailRendering: 'thumbnail',
        thumbnailRequestStrategy: 'fetch',
        enableStudyLazyLoad: true,
        dicomUploadEnabled: false,
        singlepart: 'bulkdata,video',
        bulkDataURI: { enabled: true },
        omitQuotationForMultipartRequest: true,
      },
    },
  ],
  httpErrorHandler: (error) => {
    console.warn(`DICOMweb: status ${error.status}`);
  },
};
